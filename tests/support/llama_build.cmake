# Included into the project llama.cpp by tests/support/llama_build.py: compile the files of src/models in groups,
# as newer builds do by themselves. Most of their time goes into headers that they share.
function(group_models)
    get_target_property(sources llama SOURCES)
    get_target_property(directory llama SOURCE_DIR)
    foreach(source ${sources})
        if(NOT IS_ABSOLUTE ${source})
            set(source ${directory}/${source})
        endif()
        # These two define static functions of the same names as gemma3n.cpp and delta-net-base.cpp.
        if(NOT source MATCHES "/src/models/" OR source MATCHES "/(gemma4|qwen3next)\\.cpp$")
            set_source_files_properties(
                ${source} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON
            )
        endif()
    endforeach()
    set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
endfunction()
cmake_language(DEFER CALL group_models)
